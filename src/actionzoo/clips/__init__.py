"""The data set as tensors: which frames, which pixels, in which order."""
