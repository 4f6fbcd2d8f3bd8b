"""How studies get in: listener, folders, feeds and queries; when a study is whole; who is told."""
