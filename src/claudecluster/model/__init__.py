"""Frozen nouns, ids and errors. Standard library only; every room may import them."""
