"""Before a run starts: is every host there, alike, large enough, and in touch with all others?"""
