"""Side-by-side measurements: each contender in a fresh process, ratios from one run (`python -m bench`)."""
