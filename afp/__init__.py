"""Detect AI-generated images with vision-language models of which almost nothing is trained."""

__version__ = "0.1.0"
