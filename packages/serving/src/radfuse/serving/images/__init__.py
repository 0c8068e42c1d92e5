"""Reading medical images by the rules of their formats."""
