"""Looking into routers: record what they decide, count it, and change it."""
