"""A robot is measured before any policy runs."""
