"""What all modalities share: cohorts, splits, training, evaluation, tracking and export."""
