//! What of a new pod follows from its annotations and from the settings that are about them.

use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;

use super::{Drawn, Granted};
use crate::config::{Annotation, RuntimeHandler};
use crate::cri::Cri;
use crate::cri::sandbox::check::Namespaces;
use crate::error::{Doing as _, Error, Result};

/// What is agreed on before anything of a pod is made.
pub(in crate::cri) struct Agreed {
    /// What annotations give it.
    pub(in crate::cri) granted: Granted,
    /// Its namespaces.
    pub(in crate::cri) namespaces: Namespaces,
    /// Its users, where they are by annotation.
    pub(in crate::cri) users: Option<Drawn>,
}

impl Cri {
    /// What a pod of that handler gets, whose configuration asks for those namespaces.
    ///
    /// # Errors
    /// `InvalidArgument` naming the annotation, or the limit that is too low; `FailedPrecondition` for users that cannot be.
    pub(in crate::cri) fn agree(
        &self,
        config: &v1::PodSandboxConfig,
        handler: &RuntimeHandler,
        namespaces: &Namespaces,
    ) -> Result<Agreed> {
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        enough_memory("config.linux.resources", handler, resources)?;
        let granted = self.granted(handler, &config.annotations)?;
        if granted.shm_size.is_some() && namespaces.host_ipc {
            let key = granted.key(Annotation::ShmSize, "");
            return Err(Error::invalid(format!("annotation {key}: the pod has the machine's shared memory")));
        }
        let mut namespaces = namespaces.clone();
        let mut users = None;
        if let Some(wish) = granted.users {
            let doing = || format!("annotation {}", granted.key(Annotation::Users, ""));
            if namespaces.user.is_some() {
                return Err(Error::invalid("its configuration gives the pod users already")).doing(doing);
            }
            if !self.features(handler).user_namespaces {
                let text = "the runtime handler or this machine cannot map ids";
                return Err(Error::precondition(text)).doing(doing);
            }
            let drawn = self.shared.users.draw(wish, &self.config().userns_owner, self.store()).doing(doing)?;
            namespaces.user = Some(drawn.ranges());
            users = Some(drawn);
        }
        Ok(Agreed { granted, namespaces, users })
    }
}

/// Refuses a memory limit that the handler says is too low for anything to run.
pub(in crate::cri) fn enough_memory(
    field: &str,
    handler: &RuntimeHandler,
    resources: Option<&v1::LinuxContainerResources>,
) -> Result<()> {
    let (limit, least) =
        (resources.map_or(0, |resources| resources.memory_limit_in_bytes), handler.container_min_memory);
    match u64::try_from(limit) {
        Ok(limit @ 1..) if limit < least => Err(Error::invalid(format!(
            "{field}.memory_limit_in_bytes: {limit} is less than {least}, the least of its runtime handler (container_min_memory)"
        ))),
        _ => Ok(()),
    }
}

/// The options of a pod's namespaces, with the users that it was given by annotation.
pub(in crate::cri) fn namespace_options(record: &SandboxRecord) -> Option<v1::NamespaceOption> {
    let context = record.config.as_ref().and_then(|pod| pod.linux.as_ref()?.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.clone());
    match &record.users {
        None => options,
        Some(users) => Some(v1::NamespaceOption { userns_options: Some(users.clone()), ..options.unwrap_or_default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_below_the_least_are_refused() {
        let handler = RuntimeHandler { container_min_memory: 1000, ..RuntimeHandler::default() };
        let check = |limit| {
            let resources = v1::LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() };
            enough_memory("f", &handler, Some(&resources)).map_err(|error| error.to_string())
        };
        for fine in [0, -1, 1000, 5000] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        assert!(check(999).expect_err("low").starts_with("f.memory_limit_in_bytes: 999 is less than 1000"));
        assert!(enough_memory("f", &handler, None).is_ok());
    }

    #[test]
    fn users_by_annotation_are_the_pods() {
        let ids = vec![v1::IdMapping { container_id: 0, host_id: 5, length: 9 }];
        let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
        let mut record = SandboxRecord::default();
        assert_eq!(namespace_options(&record), None);
        record.users = Some(users.clone());
        assert_eq!(namespace_options(&record).expect("options").userns_options, Some(users));
    }
}
