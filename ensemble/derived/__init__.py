"""Members made from other members by inference on a run's own images: soups, feature heads."""
