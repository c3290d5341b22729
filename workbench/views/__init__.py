"""Widgets and figures for a notebook; they read public objects and write only through their public methods."""
