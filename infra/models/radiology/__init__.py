"""Lesions on CT slices and chest radiographs."""
