"""Which version serves: the promotion gate, the audit trail, rollback."""
