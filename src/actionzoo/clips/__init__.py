"""The data set as tensors: which frames, which pixels, in which order.

loader.train_loader, view_loader    batches of views, decoded by worker processes (dataset, workers)
inputs.ToInput                      views -> the network's input, on the device
"""
