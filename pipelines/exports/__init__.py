"""Curated samples in the forms that other trainers read: which ones, how they are written, how a kill is survived."""
