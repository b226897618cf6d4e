"""The forms that other programs ask and answer in."""
