"""Exporting a merged model to other runtimes."""
