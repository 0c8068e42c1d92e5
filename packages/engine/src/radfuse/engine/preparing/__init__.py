"""From the images of a modality to arrays: decoded in processes, restartable, with a manifest at the end."""
