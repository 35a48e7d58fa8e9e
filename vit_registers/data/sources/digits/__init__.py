"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: the data set that is always there."""
