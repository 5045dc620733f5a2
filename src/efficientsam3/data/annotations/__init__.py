"""Annotation formats: SA-1B's, COCO's, and the run-length encoding that both use."""
