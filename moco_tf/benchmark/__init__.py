"""What moco_tf.bench measures, and how."""
