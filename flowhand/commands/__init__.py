"""Every verb, one file each; `flowhand VERB ...` runs any."""
