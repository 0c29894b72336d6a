"""One reader for every text file: calibration, corpus, tasks, training rows, contamination, measured code. No torch.

``unpack`` turns bytes into text, ``rows`` finds out by content what a file holds, ``forms`` what a row means.
"""
