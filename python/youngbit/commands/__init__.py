"""The command ``youngbit``: a file a family of commands.

``main`` puts them together, and ``shared`` has what several of them need.
"""
