"""Image files and arrays -> decoded, split and cached images -> tf.data batches."""
