"""The ground floor, numpy only: what the rooms say to each other, each written once."""
