"""The command `babelscope`, and how files are read: what `train` and `analysis` share and neither owns"""
