"""The command `babelscope`, and how `train` and `analysis` read configurations and text"""
