"""Programs that run inside a box; they import nothing of the rest of the package, and the kernel runs none of them."""
