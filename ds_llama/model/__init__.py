"""LLaMA 1, 2, 3, 3.1, 3.2 and 3.3 in torch alone; nothing in here knows of more than one process.

traits.py says beside the model, as data, what a sharding engine has to know about it.
"""
