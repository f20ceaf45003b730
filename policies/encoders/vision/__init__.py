"""Encoders of images and depth: what is done to an image first, the networks, and pretrained weights."""
