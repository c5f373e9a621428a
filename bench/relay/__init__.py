"""What a relay costs: Stoker's router, its peers and no router at all, side by side in one run."""
