import os

os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported, here and in the processes that tests start
