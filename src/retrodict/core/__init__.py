"""The bottom room: errors, name registries, keyed noise, linear maps. Imports nothing of retrodict."""
