"""Who is told of a failed run: a web hook, Slack, e-mail, each by one of Prefect's notification blocks."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from pydantic import SecretStr

from models.errors import SettingsError
from models.hospital import Notify


def channels(notify: Notify) -> Iterator[tuple[str, UUID]]:
    """Each channel that the settings give, with its saved block."""
    if url := notify.webhook.get_secret_value():
        yield "webhook", _webhook(url)
    if url := notify.slack.get_secret_value():
        yield "slack", _saved(SlackWebhook(url=SecretStr(url), notify_type="failure"), "nocturne-slack")
    if notify.email:
        # Prefect has no block for mail. This one hands on to Apprise whatever is not an address of Slack's.
        yield "e-mail", _saved(SlackWebhook(url=SecretStr(_mail(notify)), notify_type="failure"), "nocturne-email")


def _webhook(url: str) -> UUID:
    """`{"subject": …, "body": …}` is posted. The address may hold a password: it is kept among the block's secrets."""
    block = CustomWebhookNotificationBlock(
        name="nocturne",
        url="{{hook}}",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
        secrets={"hook": url},
    )
    return _saved(block, "nocturne-webhook")


def _mail(notify: Notify) -> str:
    """The mail server's URL, with those to be told."""
    server = notify.smtp.get_secret_value()
    if not server.startswith(("mailto://", "mailtos://")):
        raise SettingsError(
            "e-mail needs the mail server's address",
            where="notify.smtp",
            hint="as mailtos://user:password@host?from=address, see Apprise's page on e-mail",
        )
    return f"{server}{'&' if '?' in server else '?'}to={quote(','.join(notify.email), safe='@,')}"


def _saved(block: NotificationBlock, name: str) -> UUID:
    saved = block.save(name, overwrite=True)
    if not isinstance(saved, UUID):
        raise TypeError(f"a block was to be saved outside of an event loop, not {type(saved).__name__}")
    return saved
