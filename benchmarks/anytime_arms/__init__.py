"""Three ways to spend some minutes on a folder of images, for benchmarks/anytime.py."""
