"""The checks of `make test-gpu`: everything that needs a GPU and no vLLM, in at most ten minutes, without a network.

Each check is a module with a function `cases`. It runs in a process of its own with a time limit, so that neither a
crash, nor a CUDA context in an error state, nor memory that is not returned reaches the next check.
"""
