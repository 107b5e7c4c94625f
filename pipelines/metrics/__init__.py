"""Distances between two sets of features, N x D: functions of arrays, which know no images and no networks."""
