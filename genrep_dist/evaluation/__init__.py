"""What the retrained models say: deletion curves, their areas, and honest intervals."""
