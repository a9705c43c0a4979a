"""What a converted model says of itself: its manifest and its card."""
