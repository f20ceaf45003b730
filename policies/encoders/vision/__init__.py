"""Encoders of images and depth: what is done to an image before, the networks, and their files of pretrained weights."""
