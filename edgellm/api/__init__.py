"""What `import edgellm` offers: loading, inspecting and estimating a model, and the loaded model."""
