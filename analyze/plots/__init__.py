"""Figures for papers, drawn from the files of an analysis."""
