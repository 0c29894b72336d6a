"""One reader for every text file: calibration, corpus, tasks, training rows, contamination, measured code. No torch.

``unpack`` turns bytes into text, ``rows`` recognises the content of a file, and ``forms`` the meaning of a row.
"""
