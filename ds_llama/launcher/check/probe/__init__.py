"""What is sent to each host and runs there, with nothing but a Python of 3.6 or newer.

The modules here import the standard library and each other alone, and have no syntax younger than
3.6: a bare host with an old Python must be able to tell what it lacks.
"""
