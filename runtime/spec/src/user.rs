//! Who a process runs as: `user`, `uid`, `user:group` or `uid:gid`, looked up in an image's own files.
//!
//! All digits are always a number, never a name, and a number out of range is an error: anything else would let an
//! image's `/etc/passwd` decide that "1000" is root.

/// A user as the kernel knows it, and where it is at home.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids; the primary one is among them, so that leaving it out cannot go around a file that
    /// denies it.
    pub additional_gids: Vec<u32>,
    /// Home directory, where the image's files name one.
    pub home: Option<String>,
}

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownUser {
    /// A name the image does not have.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    User(String),
    /// A group name the image does not have.
    #[error("group {0:?} is not in the image's /etc/group")]
    Group(String),
    /// A number the kernel has no room for.
    #[error("id {0:?} is out of range: ids go from 0 to {MAX_ID}")]
    Range(String),
    /// More than two parts.
    #[error("user {0:?} is not user, uid, user:group or uid:gid")]
    Shape(String),
}

/// The highest id; the one above means "no change" to the kernel.
const MAX_ID: u32 = u32::MAX - 1;

/// Resolves `text` in the text of an image's `/etc/passwd` and `/etc/group`, each empty where the image has none.
/// An empty part is one that is not there, as where an image was built with a variable that was not set: root, and the
/// user's own group.
///
/// # Errors
/// Names what is missing or malformed.
pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, UnknownUser> {
    let (user, group_part) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if group_part.is_some_and(|group| group.contains(':')) {
        return Err(UnknownUser::Shape(text.to_owned()));
    }
    let wanted = if user.is_empty() { Some(0) } else { number(user)? };
    let entry = match wanted {
        Some(uid) => accounts(passwd).find(|account| account.uid == uid),
        None => accounts(passwd).find(|account| account.name == user),
    };
    let uid = match (wanted, &entry) {
        (Some(uid), _) => uid,
        (None, Some(entry)) => entry.uid,
        (None, None) => return Err(UnknownUser::User(user.to_owned())),
    };
    let gid = match group_part {
        Some(name) => group_id(name, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut additional_gids = vec![gid];
    if let (None, Some(entry)) = (group_part, &entry) {
        let member = groups(group).filter(|group| group.members.split(',').any(|name| name.trim() == entry.name));
        for group in member {
            if !additional_gids.contains(&group.gid) {
                additional_gids.push(group.gid);
            }
        }
    }
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    Ok(User { uid, gid, additional_gids, home })
}

/// Group ids of `--group-add`, which takes names and numbers.
///
/// # Errors
/// Names the unknown group.
pub fn group_id(name: &str, group: &str) -> Result<u32, UnknownUser> {
    match number(name)? {
        Some(gid) => Ok(gid),
        None => groups(group)
            .find(|group| group.name == name)
            .map(|group| group.gid)
            .ok_or_else(|| UnknownUser::Group(name.to_owned())),
    }
}

/// A number where the text is all digits, `None` where it is a name.
fn number(text: &str) -> Result<Option<u32>, UnknownUser> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(UnknownUser::Range(text.to_owned())),
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Well-formed lines of a passwd file; others are passed over, as the C library does.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        let ids = (number(uid).ok()??, number(gid).ok()??);
        (!name.is_empty() && !name.starts_with('#')).then_some(Account { name, uid: ids.0, gid: ids.1, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let members = fields.next().unwrap_or_default();
        let gid = number(gid).ok()??;
        (!name.is_empty() && !name.starts_with('#')).then_some(Group { name, gid, members })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nbroken:x\nweb:x:33:33::/var/www:/bin/false\n\
        1000:x:0:0:trap:/root:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:web,other\nmail:x:8: web\n5:x:0:\n";

    fn ids(text: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids(""), (0, 0, vec![0]));
        assert_eq!(ids("web"), (33, 33, vec![33, 4, 8]));
        assert_eq!(ids("33"), (33, 33, vec![33, 4, 8]));
        assert_eq!(ids("web:adm"), (33, 4, vec![4]));
        assert_eq!(ids("web:9"), (33, 9, vec![9]));
        assert_eq!(ids("7:5"), (7, 5, vec![5]));
        assert_eq!((ids(":"), ids("web:"), ids("33:")), (ids(""), ids("web"), ids("web")));
        assert_eq!(ids(":adm"), (0, 4, vec![4]));
        assert_eq!(resolve("web", PASSWD, GROUP).unwrap().home.as_deref(), Some("/var/www"));
        assert_eq!(resolve("1", "", "").unwrap(), User { uid: 1, additional_gids: vec![0], ..User::default() });
    }

    #[test]
    fn digits_are_never_a_name() {
        assert_eq!(ids("1000").0, 1000);
        assert_eq!(ids("01").0, 1);
        assert_eq!(ids("2147483648").0, 2_147_483_648);
        assert_eq!(ids("4294967294").0, MAX_ID);
        for bad in ["4294967295", "4294967296", "99999999999999999999"] {
            assert_eq!(resolve(bad, PASSWD, GROUP), Err(UnknownUser::Range(bad.to_owned())));
            assert!(resolve(&format!("0:{bad}"), PASSWD, GROUP).is_err());
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for bad in ["+0", "0x0", "-1", "nobody", "big", " root", "broken"] {
            assert_eq!(resolve(bad, PASSWD, GROUP), Err(UnknownUser::User(bad.to_owned())));
        }
        assert_eq!(resolve("web:none", PASSWD, GROUP), Err(UnknownUser::Group("none".to_owned())));
        assert_eq!(resolve("web:a:b", PASSWD, GROUP), Err(UnknownUser::Shape("web:a:b".to_owned())));
    }
}
