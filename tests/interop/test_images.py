"""Claimed; being written."""
