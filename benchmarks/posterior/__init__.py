"""Posterior sampling with known answers: problems, and what is measured of samples."""
