"""Nests of crowded nuclei on whole slides."""
