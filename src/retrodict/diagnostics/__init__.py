"""What a sampler and its samples are worth: certificates, distances, classifiers, reports."""
