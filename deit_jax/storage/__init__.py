"""Where the files of a workdir are and how they are read and written: workdir.py. The rest of the package opens none of them."""
