"""Pipelines of diffusers that read text: what a format conditions on, and pictures of conditions."""
